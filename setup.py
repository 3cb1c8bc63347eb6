"""The packages of the wheel; everything else about it stands in pyproject.toml.

Configurations and small public models lie at the root of the checkout, where people look for them, and inside the
installed package, so that it works from any folder (`ldm.shipped`).
"""

from setuptools import find_namespace_packages, setup

SHIPPED = {"ldm.shipped.configs": "configs", "ldm.shipped.checkpoints": "checkpoints"}

setup(packages=[*find_namespace_packages(include=["ldm*", "callbacks*"]), *SHIPPED], package_dir=SHIPPED)
