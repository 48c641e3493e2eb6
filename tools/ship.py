r"""Weights as the bundle ships them: float16, half the size, with their record, in which the data and its terms stand.

    python tools/ship.py --checkpoint runs/liver/model_final.pt --output bundle/models/liver.pt \
        --dataset "CHAOS, T2-SPIR, 15 open cases" --license "CC BY-NC-SA 4.0"

The masks should be scored again: tools/ship.py does not look at them.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))

from scripts.errors import InputError
from scripts.weights.checkpoints import read_state, write_state
from scripts.weights.record import read_record, record_of, write_record


def ship(checkpoint: Path, output: Path, dataset: str, license: str, settings: dict) -> None:
    """Writes ``output`` and its record.

    Args:
        checkpoint: weights of a training, with their record.
        output: a file that ends with ``.pt``; one that is there is replaced.
        dataset: what the record is to say that they were trained on.
        license: terms of that data, for the record.
        settings: of the record, to be changed.

    Raises:
        InputError: when the weights have no record, or cannot be read.
    """
    record = read_record(checkpoint)
    if record is None:
        raise InputError(f"The weights {checkpoint} should have a record, {record_of(checkpoint)} is not there.")
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in read_state(checkpoint).items()
    }
    write_state(weights, output, outdated=record_of(output))
    told = {**record, "dataset": dataset, "license": license, "metrics": {}, "settings": record["settings"] | settings}
    del told["sha256"]
    write_record(output, told)


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--license", required=True)
    parser.add_argument(
        "--settings", type=ast.literal_eval, default={}, help="of the record, such as \"{'min_piece': 0.1}\""
    )
    arguments = parser.parse_args()
    try:
        ship(**vars(arguments))
    except InputError as error:
        return f"Error: {error}"
    print(json.dumps({"file": str(arguments.output), "MB": round(arguments.output.stat().st_size / 1e6, 1)}))
    return None


if __name__ == "__main__":
    sys.exit(main())
