"""The bundle as an application of MONAI Deploy: a folder of cases in, masks out, by an exported TorchScript.

    PYTHONPATH=<bundle> python app.py --input <folder of cases> --output <folder> --model <bundle>/models/model.ts

All transforms and the inferer are those of the ``inference.json`` inside the TorchScript. It names code of the bundle,
so the bundle has to be on PYTHONPATH.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Fragment, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators.monai_bundle_inference_operator import (
    IOMapping,
    MonaiBundleInferenceOperator,
    get_bundle_config,
)
from monai.transforms import SaveImaged

from scripts.errors import InputError, one_sentence
from scripts.inference.cases import FAULT, CaseDataset


class LoadCaseOperator(Operator):
    """One case after the other, as an image of shape (C, W, H, D) with its metadata."""

    def __init__(self, fragment: Fragment, *args: Any, dataset: CaseDataset, **kwargs: Any) -> None:
        self.cases = iter(dataset)
        self.faults: list[str] = []
        super().__init__(fragment, CountCondition(fragment, len(dataset)), *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")
        spec.output("metadata")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        case = next(self.cases)
        if FAULT in case:
            self.faults.append(case[FAULT])
            return
        image = case["image"]
        op_output.emit(Image(image.numpy(), image.meta), "image")
        op_output.emit(image.meta, "metadata")


class SaveMaskOperator(Operator):
    """The mask (1, W, H, D), written with the affine of the case."""

    def __init__(self, fragment: Fragment, *args: Any, save: SaveImaged, **kwargs: Any) -> None:
        self.save = save
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")
        spec.input("metadata")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        self.save({"pred": MetaTensor(op_input.receive("pred"), meta=op_input.receive("metadata"))})


class SegmentationApplication(Application):
    """Loading, the SDK's operator for bundles, saving. A bad case does not stop the others."""

    def compose(self) -> None:
        context = Application.init_app_context(self.argv)
        config = get_bundle_config(context.model_path, "inference")
        config.update({"dataset_dir": str(context.input_path), "output_dir": str(context.output_path)})
        # The SDK's operator does the transforms between.
        config["preprocessing#transforms"] = config["preprocessing#transforms"][:1]
        *_, save = config.get_parsed_content("postprocessing").transforms
        dataset = config.get_parsed_content("dataset")
        dataset.prepare()
        self.loading = LoadCaseOperator(self, dataset=dataset, name="load")
        inference = MonaiBundleInferenceOperator(
            self,
            app_context=context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=Path(context.model_path),
            name="inference",
        )
        saving = SaveMaskOperator(self, save=save, name="save")
        self.add_flow(self.loading, inference, {("image", "image")})
        self.add_flow(inference, saving, {("pred", "pred")})
        self.add_flow(self.loading, saving, {("metadata", "metadata")})


def main() -> None:
    application = SegmentationApplication()
    application.run()
    if application.loading.faults:
        raise InputError("\n".join(application.loading.faults))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sentence = one_sentence(error)
        if sentence is None:
            raise
        sys.exit(f"Error: {sentence}")
