"""Samples from a file of `flowmaps export`, by onnxruntime and numpy alone: python onnx_sample.py map.onnx samples.npy

Labels come from 0 to K - 1 in turn; the guidance weight, where the file takes one, is the third argument.
"""

import json
import sys

import numpy as np
import onnxruntime

NUMBER, SEED = 16, 0


def main(path: str, out: str, weight: str = "1") -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    shape, classes = json.loads(about["shape"]), json.loads(about.get("classes", "[]"))
    kinds = {value.name: np.float64 if "double" in value.type else np.float32 for value in session.get_inputs()}
    random = np.random.default_rng(SEED)
    inputs = {"noise": random.standard_normal((NUMBER, *shape)).astype(kinds["noise"])}
    for value in session.get_inputs():
        if value.name == "fresh_noise":  # of a sampler that adds noise on the way
            inputs[value.name] = random.standard_normal((value.shape[0], NUMBER, *shape)).astype(kinds["noise"])
        elif value.name == "condition":
            inputs[value.name] = np.arange(NUMBER) % max(1, len(classes))
        elif value.name == "guidance_weight":
            inputs[value.name] = np.full(NUMBER, weight, kinds["noise"])
    (samples,) = session.run(["samples"], inputs)
    np.save(out, samples)
    print(f"{NUMBER} samples in {about['steps']} steps, {about['samples']}: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
