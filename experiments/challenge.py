"""As a BraTS challenge is played: train on all labelled cases, write the masks of those that have no label.

    python experiments/challenge.py --dataset_dir <labelled cases> --validation_dir <the others> --output_dir submission

No case is set aside, the settings are the paper's, and the last weights are used. Masks are ``<case>.nii.gz`` with the
enhancing tumor as 4, in the space of the images, as the portal of BraTS 2018 to 2021 takes them;
``--label_convention`` for those of other years.
The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from runs import BUNDLE, InputError, bundle, hold_to, read_json, write

from scripts.arguments import listed
from scripts.data.cases import list_cases
from scripts.data.labels import LABEL_CONVENTIONS
from scripts.files import whole_file
from scripts.weights.record import sha256

CONFIGS = BUNDLE / "configs"
DISTILLATION_WEIGHT = 0.3  # the paper's lambda; the other settings of train.json are the paper's already


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="the labelled cases")
    parser.add_argument("--validation_dir", type=Path, required=True, help="the cases whose masks are wanted")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of masks; work/ in it has the weights")
    parser.add_argument("--label_convention", choices=LABEL_CONVENTIONS, default="brats2018")
    parser.add_argument(
        "--config_file",
        type=listed(str),
        default=[],
        help="overlays on train.json, from the bundle's folder or with their whole path: \"['configs/cpu.json']\"",
    )
    arguments = parser.parse_args(argv)
    try:
        print(play(arguments))
    except InputError as error:
        return f"Error: {error}"
    return None


def play(arguments: argparse.Namespace) -> str:
    """Trains, segments and hands out; gives the sentence that says what was written.

    Raises:
        InputError: when the folder is of other arguments, a workflow fails, or a case has no mask in the end.
    """
    output: Path = arguments.output_dir
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    weights = work / "model_final.pt"
    wanted = [case.case_id for case in list_cases(arguments.validation_dir)]
    knobs = {"bundle_root": BUNDLE, "label_convention": arguments.label_convention}
    overlays = [BUNDLE / name for name in arguments.config_file]
    contents = {str(path): read_json(path) for path in overlays}
    cases = sorted(case.case_id for case in list_cases(arguments.dataset_dir))
    wanted_weights = {"cases": cases, "label_convention": arguments.label_convention, "config_file": contents}
    advice = f"delete {work} to train anew, or take another --output_dir"
    hold_to(work / "arguments.json", wanted_weights, advice, work.glob("*.pt"))
    with open(work / "log.txt", "a") as log:
        if not weights.is_file():
            own = {"dataset_dir": arguments.dataset_dir.resolve(), "ckpt_dir": work.resolve(), "resume": "auto"}
            own |= {"output_dir": work.resolve(), "distillation_weight": DISTILLATION_WEIGHT}
            train = [CONFIGS / "train.json", *overlays, CONFIGS / "all_cases.json"]  # which no overlay undoes
            bundle("training", train, {**knobs, **own}, log, str(output))
        # Those of other weights, or of other cases with the same names, are no part of it.
        of_cases = hashlib.sha256(str(arguments.validation_dir.resolve()).encode()).hexdigest()
        masks = work / f"masks-{arguments.label_convention}-{sha256(weights)[:16]}-{of_cases[:8]}"
        own = {"dataset_dir": arguments.validation_dir.resolve(), "checkpoint": weights.resolve()}
        own |= {"output_dir": masks.resolve(), "skip_existing": True}
        network = {}
        for content in contents.values():
            network |= {name: value for name, value in content.items() if name.startswith("network_def")}
        write(work / "network.json", network)
        bundle("inference", [CONFIGS / "inference.json", work / "network.json"], {**knobs, **own}, log, str(output))
    missing = [case_id for case_id in wanted if not (masks / f"{case_id}_seg.nii.gz").is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} cases have no mask, such as {missing[0]}: the end of "
            f"{work / 'log.txt'} says why."
        )
    for case_id in wanted:
        with whole_file(output / f"{case_id}.nii.gz") as temporary:
            shutil.copyfile(masks / f"{case_id}_seg.nii.gz", temporary)
    return f"{len(wanted)} masks written to {output}, {arguments.label_convention}."


if __name__ == "__main__":
    sys.exit(main())
