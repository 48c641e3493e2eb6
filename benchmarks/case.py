"""(b) A whole case, from four files to a saved mask: python benchmarks/case.py MISSU <four files>

The candidates, with random weights: MISSU by configs/inference.json, at 1 mm as the paper has it; the recipe of the
model zoo's bundle brats_mri_segmentation (SegResNet, the whole volume in one window of 240 x 240 x 160); nnU-Net v2's
own predictor (package nnunetv2) with its plan 3d_fullres for BraTS, mirroring off. "tuned" and what follows: what MISSU
gets, too, see engines.py. "2 mm": the weights that the bundle ships.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from engines import computed
from measure import report, seconds

BUNDLE = Path(__file__).parents[1] / "bundle"
MODALITIES = ("t1", "t1ce", "t2", "flair")

spent: Counter[str] = Counter()


def timed(owner: Any, method: str, phase: str) -> None:
    """Adds what the method takes to its phase, less what other phases in it take."""
    inner: Callable = getattr(owner, method)

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        before, start = spent.total(), time.perf_counter()
        result = inner(*args, **kwargs)
        spent[phase] += time.perf_counter() - start - (spent.total() - before)
        return result

    setattr(owner, method, outer)


def missu(files: list[str], output: str, **knobs: Any) -> Callable[[], object]:
    from monai.bundle import ConfigParser
    from monai.transforms import SaveImaged

    from scripts.data import LoadImageCased
    from scripts.inference import AdaptiveInferer, CaseDataset
    from scripts.memory import keep_freed_memory
    from scripts.weights.checkpoints import load_weights

    os.chdir(BUNDLE)
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser.update(
        {
            "datalist": [{"case_id": "case", "image": dict(zip(MODALITIES, files))}],
            "output_dir": output,
            "num_workers": 0,
            "handlers": ["@load_weights"] if Path(knobs["checkpoint"]).is_file() else [],
            "engine_cache_dir": output + "/cache",
            **knobs,
        }
    )
    keep_freed_memory()  # as inference.json does
    evaluator = parser.get_parsed_content("evaluator")
    if knobs.get("engine") == "openvino":  # what is done once for some weights, and then kept on disk
        if Path(knobs["checkpoint"]).is_file():
            load_weights(evaluator.network.eager, knobs["checkpoint"])
        evaluator.network(torch.zeros(1, 4, 32, 32, 32))
    timed(CaseDataset, "__getitem__", "preprocess")
    timed(LoadImageCased, "__call__", "load")
    timed(AdaptiveInferer, "__call__", "network")
    timed(SaveImaged, "__call__", "save")
    return evaluator.run


def segresnet(files: list[str], output: str, engine: str) -> Callable[[], object]:
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedEvaluator
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import SegResNet
    from monai.transforms import (
        Activationsd,
        AsDiscreted,
        Compose,
        Invertd,
        LoadImaged,
        NormalizeIntensityd,
        SaveImaged,
    )

    window = (240, 240, 160)
    preprocessing = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ]
    )
    postprocessing = Compose(
        [
            Activationsd("pred", sigmoid=True),
            Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", threshold=0.5),
            SaveImaged("pred", output_dir=output, resample=False),
        ]
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": files}], preprocessing), batch_size=1),
        network=computed(
            SegResNet(
                in_channels=4,
                out_channels=3,
                init_filters=16,
                blocks_down=(1, 2, 2, 4),
                blocks_up=(1, 1, 1),
                dropout_prob=0.2,
            ).eval(),
            engine,
            (1, 4, *window),
        ),
        inferer=SlidingWindowInferer(roi_size=window, sw_batch_size=1, overlap=0.5),
        postprocessing=postprocessing,
    )
    timed(Dataset, "__getitem__", "preprocess")
    timed(LoadImaged, "__call__", "load")
    timed(SlidingWindowInferer, "__call__", "network")
    timed(SaveImaged, "__call__", "save")
    return evaluator.run


def nnunet(files: list[str], output: str, engine: str) -> Callable[[], object]:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = output  # it warns without
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference import predict_from_raw_data as prediction
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    stages = 6
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [128, 128, 128],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [True] * 4,
        **{
            key: function
            for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1))
            for key, function in (
                (f"resampling_fn_{kind}", "resample_data_or_seg_to_shape"),
                (
                    f"resampling_fn_{kind}_kwargs",
                    {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None},
                ),
            )
        },
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [32, 64, 128, 256, 320, 320],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "dataset_name": "Dataset001_BraTS",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [140, 171, 136],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(4)},
    }
    dataset = {
        "channel_names": dict(enumerate(MODALITIES)),
        "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
        "file_ending": ".nii.gz",
    }
    manager = PlansManager(plans)
    architecture = configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        4,
        4,
        deep_supervision=False,
    )
    network = computed(network, engine, ())
    predictor = prediction.nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        dataset,
        "nnUNetTrainer",
        None,
    )
    timed(predictor.configuration_manager.preprocessor_class, "run_case", "preprocess")
    timed(SimpleITKIO, "read_images", "load")
    timed(prediction.nnUNetPredictor, "predict_logits_from_preprocessed_data", "network")
    timed(SimpleITKIO, "write_seg", "save")
    return lambda: predictor.predict_from_files_sequential([files], [os.path.join(output, "case")])


RANDOM = {"checkpoint": "none"}  # so that knobs have the config's defaults: 1 mm, crops of 128^3
SHIPPED = {"checkpoint": str(BUNDLE / "models" / "model.pt")}
OPENVINO, BFLOAT16 = {"engine": "openvino"}, {"precision": "bfloat16"}

CANDIDATES: dict[str, Callable[[list[str], str], Callable[[], object]]] = {
    "MISSU": partial(missu, **RANDOM),
    "MISSU, bfloat16": partial(missu, **RANDOM, **BFLOAT16),
    "MISSU, OpenVINO": partial(missu, **RANDOM, **OPENVINO),
    "MISSU, OpenVINO bfloat16": partial(missu, **RANDOM, **OPENVINO, **BFLOAT16),
    "SegResNet, zoo": partial(segresnet, engine="published"),
    "SegResNet, zoo, tuned": partial(segresnet, engine="tuned"),
    "SegResNet, zoo, bfloat16": partial(segresnet, engine="bfloat16"),
    "SegResNet, zoo, OpenVINO": partial(segresnet, engine="OpenVINO"),
    "SegResNet, zoo, OpenVINO bfloat16": partial(segresnet, engine="OpenVINO bfloat16"),
    "nnU-Net v2": partial(nnunet, engine="published"),
    "nnU-Net v2, tuned": partial(nnunet, engine="tuned"),
}
BRAINS = {
    "2 mm": partial(missu, **SHIPPED),
    "2 mm, bfloat16": partial(missu, **SHIPPED, **BFLOAT16),
    "2 mm, OpenVINO": partial(missu, **SHIPPED, **OPENVINO),
    "2 mm, OpenVINO bfloat16": partial(missu, **SHIPPED, **OPENVINO, **BFLOAT16),
}


def main(name: str, *files: str) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as output:
        run = (CANDIDATES | BRAINS)[name](list(files), output)
        total = seconds(run)
    report(seconds=total, phases={**spent, "postprocess": total - spent.total()})


if __name__ == "__main__":
    main(*sys.argv[1:])
