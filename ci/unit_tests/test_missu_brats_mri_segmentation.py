# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Every workflow of the bundle on four small cases of noise: training, evaluation, inference.

It lies here as the model zoo wants it, ``ci/unit_tests/test_<bundle>.py``, and is run from the zoo's root, where the
bundle is ``models/missu_brats_mri_segmentation``.
"""

import os
import shutil
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE_ROOT = "models/missu_brats_mri_segmentation"
SHAPE = (40, 44, 36)
SMALL = {
    "bundle_root": BUNDLE_ROOT,
    "roi_size": [16, 16, 16],
    "num_workers": 0,
    "network_def#hidden_size": 16,
    "network_def#mlp_dim": 16,
    "network_def#num_layers": 1,
}
TRAINING = {"max_epochs": 1, "val_interval": 1, "batch_size": 2, "distillation_weight": 0.3}


class TestMISSUBratsSeg(unittest.TestCase):
    def setUp(self):
        sys.path.insert(0, BUNDLE_ROOT)  # MONAI does so only in run(), after the properties are checked
        self.dataset_dir = tempfile.mkdtemp()
        rng = np.random.default_rng(0)
        for number in range(4):
            case = f"case_{number}"
            os.makedirs(os.path.join(self.dataset_dir, case))
            for modality in ("t1", "t1ce", "t2", "flair"):
                self.save(case, modality, rng.uniform(1, 2, SHAPE).astype(np.float32))
            self.save(case, "seg", rng.choice([0, 1, 2, 4], SHAPE).astype(np.uint8))

    def save(self, case, suffix, volume):
        file = os.path.join(self.dataset_dir, case, f"{case}_{suffix}.nii.gz")
        nib.save(nib.Nifti1Image(volume, np.eye(4)), file)

    def tearDown(self):
        sys.path.remove(BUNDLE_ROOT)
        shutil.rmtree(self.dataset_dir)

    def run_workflow(self, workflow_type, configs, override):
        folder = os.path.join(BUNDLE_ROOT, "configs")
        made = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=[os.path.join(folder, config) for config in configs],
            logging_file=os.path.join(folder, "logging.conf"),
            meta_file=os.path.join(folder, "metadata.json"),
            dataset_dir=self.dataset_dir,
            **override,
        )
        made.initialize()
        missing = made.check_properties()
        assert not missing, f"check properties for {configs} failed: {missing}"
        made.run()
        made.finalize()

    def test_train_eval_infer(self):
        output_dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, output_dir)
        paths = {"ckpt_dir": os.path.join(output_dir, "models"), "output_dir": output_dir}
        self.run_workflow("train", ["train.json"], {**SMALL, **TRAINING, **paths})

        checkpoint = os.path.join(output_dir, "models", "model.pt")
        paths = {"checkpoint": checkpoint, "output_dir": output_dir}
        # the overlay turns train.json into an evaluation: still the properties of "train"
        self.run_workflow("train", ["train.json", "evaluate.json"], {**SMALL, **paths, "split": "testing"})

        paths["output_dir"] = os.path.join(output_dir, "masks")
        self.run_workflow("infer", ["inference.json"], {**SMALL, **paths})
        for number in range(4):
            mask = nib.load(os.path.join(paths["output_dir"], f"case_{number}_seg.nii.gz"))
            assert mask.shape == SHAPE


if __name__ == "__main__":
    unittest.main()
