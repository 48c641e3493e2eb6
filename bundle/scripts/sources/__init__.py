"""What becomes cases: DICOM series, the CHAOS challenge, synthetic brains."""
