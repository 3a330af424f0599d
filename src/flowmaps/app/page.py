"""The page, by Gradio: controls, and for each tab a function that calls this folder's other files.

Nothing is computed here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ..methods import Jumps
from ..reports.pictures import residual_square
from ..runs.plan import Plan
from ..runs.stages import STRIP_WIDTH
from ..system.progress import Watch
from . import carrying, jumps, panels, samples, squares
from .opened import POINTS, Asked, OpenRun

if TYPE_CHECKING:
    import gradio as gr
    from PIL.Image import Image

DPI = 144
"""Of pictures, at which `image_grid` draws each pixel of an image as whole ones."""
ALL = "all in turn"
"""The choice of no class of its own."""
STEPS = (1, 2, 4, 8, 16)
"""Numbers of steps to choose from."""


class Page:
    """The page of a run.

    Args:
        run: the run.
        gradio: the module.
    """

    def __init__(self, run: OpenRun, gradio: Any) -> None:
        self.run, self.gr = run, gradio
        self.names = panels.names_of(run.units)
        self.two = not panels.drawn_as_images(run) and len(self.names) > 2

    def build(self) -> gr.Blocks:
        """The page, which is not served yet."""
        gr, plan = self.gr, self.run.plan
        title = f"{plan.recipe.name}: {plan.method.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 600)) as page:
            gr.Markdown(f"# {title}\n\n{_about(self.run)}", elem_classes="about")
            with gr.Row():
                with gr.Column(scale=1, min_width=250):
                    self._controls()
                with gr.Column(scale=4), gr.Tabs():
                    drawing = [self._samples(), self._jumps(), self._residuals(), self._carrying()]
            page.load(**drawing[0], **_computing(drawing[0]))
        return page

    # controls

    def _controls(self) -> None:
        """The controls that all tabs share: noise, class, guidance, conditions, columns."""
        gr, units, recipe = self.gr, self.run.units, self.run.plan.recipe
        self.seed = gr.Number(0, label="seed of the noise", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
        new = gr.Button("new noise", size="sm", elem_id="new-noise")
        new.click(lambda seed: int(seed or 0) + 1, self.seed, self.seed, api_visibility="private")
        self.label = gr.Dropdown(
            [ALL, *_classes(self.run)], value=ALL, label="class", visible=units.classes is not None, elem_id="class"
        )
        guided = len(recipe.guidance) == 2
        low, high = recipe.guidance if guided else (1.0, 2.0)
        self.guidance = gr.Slider(low, high, low, label="guidance weight", visible=guided, elem_id="guidance")
        self.number = gr.Slider(
            100, samples.MAX_SAMPLES, POINTS, step=100, label="points", visible=not units.pictures, elem_id="number"
        )
        self.columns = [
            gr.Dropdown(
                [(name, column) for column, name in enumerate(self.names)], value=min(k, len(self.names) - 1),
                label=f"{axis} axis", visible=self.two, elem_id=f"column-{axis}",
            )
            for k, axis in enumerate(("horizontal", "vertical"))
        ]  # fmt: skip
        self.values = [gr.Number(float(own.example), label=own.name) for own in units.conditions]

    @property
    def changes(self) -> list[Any]:
        """The events of the shared controls: what they ask for has changed."""
        given = [one.input for one in (self.label, *self.columns, *self.values)]
        return [self.seed.change, *given, self.guidance.release, self.number.release]

    @property
    def shared(self) -> list[Any]:
        """The controls of `_controls`, in the order that `_asked` takes their values in."""
        return [self.seed, self.label, self.guidance, self.number, *self.columns, *self.values]

    def _asked(self, given: Sequence[Any]) -> tuple[Asked, panels.Columns]:
        """What the shared controls ask for, and the columns to show."""
        seed, label, guidance, number, first, second, *values = given
        units = self.run.units
        named = dict(zip([own.name for own in units.conditions], values, strict=True))
        asked = Asked(
            seed=int(seed or 0),
            number=None if units.pictures else int(number),
            label=None if label == ALL else label,
            guidance=float(guidance) if len(self.run.plan.recipe.guidance) == 2 else None,
            values={name: value for name, value in named.items() if value is not None},
        )
        return asked, (int(first or 0), int(second or 0))

    # tabs

    def _samples(self) -> dict[str, Any]:
        gr = self.gr
        supported = [steps for steps in STEPS if steps in self.run.plan.supported_steps([steps])]
        chosen = [steps for steps in samples.STEPS if steps in supported] or supported[:1]
        flow = self.run.flow()
        with gr.Tab("Samples"):
            with gr.Row():
                steps = gr.CheckboxGroup(supported, value=chosen, label="steps, from the same noise", elem_id="steps")
                words = "beside the flow" if flow is None else f"beside the flow of {flow[1]}, solved by dopri5"
                quick = flow is not None and not (self.run.units.pictures and self.run.device.type == "cpu")
                beside = gr.Checkbox(quick, label=words, interactive=flow is not None, elem_id="beside")
                button = self._button("draw")
            picture, said = self._picture("samples")
            headers = ["sampler", "evaluations", "time", "times faster"]
            table = gr.Dataframe(headers=headers, interactive=False, elem_id="timings", label="what each takes")

        def draw(progress: Any, chosen: list[int], beside: bool, *given: Any) -> Iterator[Any]:
            asked, columns = self._asked(given)
            drawn = list[samples.Drawn]()
            numbers = sorted(chosen)
            for one in samples.same_noise(self.run, asked, numbers, beside=beside, watch=_watch(progress)):
                drawn.append(one)
                if len(drawn) >= len(numbers):  # the map's are shown while the flow is being solved
                    said = _beside(self.run, drawn, asked.seed)
                    yield png(panels.samples(self.run, drawn, columns)), said, samples.timings(drawn)

        event = {"fn": self._told(draw, 1), "inputs": [steps, beside, *self.shared], "outputs": [picture, said, table]}
        self._on([button.click, steps.input, beside.input, *self.changes], event)
        return event

    def _jumps(self) -> dict[str, Any]:
        gr, plan, method = self.gr, self.run.plan, self.run.plan.method
        to_data, end = method.jumps is Jumps.TO_DATA, STRIP_WIDTH if plan.on_strip else 1.0
        with gr.Tab("Where points go") as tab:
            gr.Markdown(
                "Points of time s, to which the map takes the noise, and where one jump of it takes them: time t. "
                f"The map learned jumps {_learned(plan)}."
            )
            with gr.Row():
                s = gr.Slider(0, 1, 0, step=0.01, label="s, from (0 is noise)", elem_id="s")
                t = gr.Slider(0, 1, end, step=0.01, label="t, to (1 is data)", elem_id="t", interactive=not to_data)
            flow = gr.Checkbox(not self.run.units.pictures, label="over the flow's own trajectories", elem_id="flow")
            picture, said = self._picture("jumps")

        def move(progress: Any, s: float, t: float, along: bool, *given: Any) -> Iterator[Any]:
            asked, columns = self._asked(given)
            progress(0.1, desc="jumping")
            found = jumps.jump(self.run, asked, s, t, along_flow=along)
            flow = self.run.flow(asked.guidance)
            number = f"{len(found.start):,} {'images' if self.run.units.pictures else 'points'}"
            seconds = samples.seconds_in_words(found.seconds)
            words = f"one jump of {number} from s = {s:g} to t = {t:g}, noise of seed {asked.seed}: {seconds}"
            words += f"; without the flow, which cannot be solved: {found.unsolved}" if found.unsolved else ""
            yield (
                png(panels.jumped(self.run, found, columns, "" if flow is None else f"flow of {flow[1]}")),
                _said(words),
            )

        event = {"fn": self._told(move, 0), "inputs": [s, t, flow, *self.shared], "outputs": [picture, said]}
        live = "release" if self.run.units.pictures else "change"
        self._on([tab.select, *(getattr(one, live) for one in (s, t)), flow.input, *self.changes], event)
        return event

    def _residuals(self) -> dict[str, Any]:
        gr = self.gr
        with gr.Tab("Residuals"):
            gr.Markdown(
                "How far the map is from agreeing with itself: two jumps against one, and there and back, for every "
                "pair of times. Both vanish for an exact map; pairs that it has not learned, such as backwards ones, "
                "need not."
            )
            with gr.Row():
                button = self._button("measure")
            picture, said = self._picture("residuals")

        def measure(progress: Any, *given: Any) -> Iterator[Any]:
            asked, _ = self._asked(given)
            found, seconds = samples.timed(lambda: squares.square(self.run, asked, _watch(progress)))
            words = f"noise of seed {asked.seed}: {samples.seconds_in_words(seconds)}"
            yield png(residual_square(found)), _said(words)

        event = {"fn": self._told(measure, 0), "inputs": self.shared, "outputs": [picture, said]}
        self._on([button.click], event)
        return event

    def _carrying(self) -> dict[str, Any]:
        gr, units = self.gr, self.run.units
        with gr.Tab("To noise and back"):
            gr.Markdown("Data taken back towards the noise by the map, and carried to the data again.")
            with gr.Row():
                steps = gr.Slider(1, 16, 4, step=1, label="steps either way", elem_id="carry-steps")
                to = gr.Slider(0, 0.99, 0, step=0.01, label="back to time (0 is noise)", elem_id="to")
                own = "their own"
                choices = [own, *_classes(self.run)]
                target = gr.Dropdown(
                    choices, value=own, label="come back as class", visible=units.classes is not None, elem_id="target"
                )
                button = self._button("carry")
            picture, said = self._picture("carried")

        def carry(progress: Any, steps: int, to: float, target: str, *given: Any) -> Iterator[Any]:
            asked, columns = self._asked(given)
            wanted = None if target == own else target
            options = {"steps": int(steps), "to": to, "target": wanted, "watch": _watch(progress)}
            found = carrying.carry(self.run, asked, **options)
            yield png(panels.carried(self.run, found, columns)), _said(found.text())

        inputs = [steps, to, target, *self.shared]
        event = {"fn": self._told(carry, 0), "inputs": inputs, "outputs": [picture, said]}
        self._on([button.click], event)
        return event

    # parts

    def _picture(self, name: str) -> tuple[Any, Any]:
        """A place for a picture, and one for a line below it."""
        gr = self.gr
        options = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
        picture = gr.Image(type="pil", format="png", elem_id=f"{name}-picture", **options)
        return picture, gr.HTML(elem_id=f"{name}-said", elem_classes="said")

    def _button(self, words: str) -> Any:
        return self.gr.Button(words, variant="primary", scale=0, min_width=130, elem_id=words)

    def _on(self, triggers: Sequence[Any], event: dict[str, Any]) -> None:
        """Have a function called by any of some events, once for the last of many in a row."""
        self.gr.on(triggers, **event, **_computing(event), trigger_mode="always_last")

    def _told(self, fn: Callable[..., Iterator[Any]], others: int) -> Callable[..., Iterator[Any]]:
        """A function whose refusals are shown as a line, and leave the picture and the `others` as they are."""
        gr, bar = self.gr, self.gr.Progress()

        def told(progress: Any = bar, *given: Any) -> Iterator[Any]:  # Gradio looks for its class among the defaults
            try:
                yield from fn(progress, *given)
            except (ValueError, OSError, NotImplementedError) as error:
                words = " ".join(str(error).split())
                yield gr.skip(), f'<div class="refused">{escape(words)}</div>', *(gr.skip() for _ in range(others))

        return told


def _computing(event: dict[str, Any]) -> dict[str, Any]:
    """Options of an event that computes: progress is shown in the line below its picture, which stays; one computes at
    a time, so that the time that is shown is its own."""
    shared = {"concurrency_id": "run", "concurrency_limit": 1, "api_visibility": "private"}
    return {"show_progress_on": event["outputs"][1], **shared}


def png(figure: Figure) -> Image:
    """A figure as a picture for the page."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return Image.open(buffer)


def _watch(progress: Any) -> Watch:
    """The progress callback that moves Gradio's bar."""
    return lambda title, share: progress(share, desc=title)


def _said(words: str) -> str:
    return f"<div>{escape(words)}</div>"


def _classes(run: OpenRun) -> list[str]:
    """The classes that can be asked for, by their names or numbers."""
    units = run.units
    names = units.names or tuple(map(str, range(units.classes or 0)))
    return [name for k, name in enumerate(names) if k not in units.absent]


def _about(run: OpenRun) -> str:
    """What the run is, in a paragraph."""
    plan, data = run.plan, Path(run.plan.recipe.data).name
    shape = " x ".join(map(str, run.units.shape))
    words = f"{plan.summary()}, on {data or 'data of your own'}; samples of {shape} numbers. "
    words += f"The map learned jumps {_learned(plan)}. It runs on {run.device}."
    limits = plan.limits()
    return words if limits is None else f"{words} {limits[0].upper()}{limits[1:]}."


def _learned(plan: Plan) -> str:
    """Which jumps the map of a plan learned, in words."""
    one_way = plan.method.jumps is Jumps.ANY and not plan.both_orders
    return plan.method.jumps.value + (", towards the data" if one_way else "")


def _beside(run: OpenRun, drawn: Sequence[samples.Drawn], seed: int) -> str:
    """What is beside what, in a line."""
    number = len(drawn[0].samples.x)
    kind = "images" if run.units.pictures else "points"
    return _said(f"{number:,} {kind} by each sampler, from the same noise, of seed {seed}")
