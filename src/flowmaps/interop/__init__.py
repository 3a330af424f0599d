"""Models of other libraries as teachers and students: each function takes a trained model and returns a `Model`.

| what you have | function |
|---|---|
| a network that returns a velocity | `velocity` |
| a model of `flow_matching` and its path | `flow_matching` |
| a network that returns noise, data or v, and its alphas_cumprod | `ddpm` |
| a denoiser D(x, sigma) of EDM | `edm` |
| a pipeline of `diffusers`, as an object, a folder or a name on the hub | `diffusers` |
| a denoiser of `azula` | `azula` |

A student trains on the linear path, whatever path the model was trained on: the jumps of a noise prediction on its own
schedule are badly scaled.
"""

from .adapters import azula as azula
from .adapters import ddpm as ddpm
from .adapters import edm as edm
from .adapters import flow_matching as flow_matching
from .adapters import velocity as velocity
from .conversion import Conversion as Conversion
from .model import Model as Model
from .model import to_pipeline as to_pipeline
from .pipelines import diffusers as diffusers
