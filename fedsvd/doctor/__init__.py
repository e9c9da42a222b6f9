"""Checks for ``fedsvd doctor``: each returns its result and, if something is wrong, a suggested fix."""

from fedsvd.doctor.certificates import check_certificates
from fedsvd.doctor.environment import check_folder, check_gpu, check_packages, check_port, check_python
from fedsvd.doctor.finding import Finding
from fedsvd.doctor.superlink import check_superlink

__all__ = [
    "Finding",
    "check_certificates",
    "check_folder",
    "check_gpu",
    "check_packages",
    "check_port",
    "check_python",
    "check_superlink",
]
