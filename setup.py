"""What pyproject.toml cannot say: folders of the checkout that the wheel holds below `colorgan`.

`launcher` becomes colorgan/launcher, so that the console command finds its scripts and recipes, and
`datasets` becomes colorgan/corpora/datasets: at the top level its name is Hugging Face's.
"""

from setuptools import find_packages, setup

CORPORA = "colorgan.corpora"

setup(
    packages=[
        *find_packages(include=["colorgan*", "shards*"]),
        "colorgan.launcher",
        *(f"{CORPORA}.{name}" for name in find_packages(include=["datasets*"])),
    ],
    package_dir={
        "colorgan.launcher": "launcher",
        f"{CORPORA}.datasets": "datasets",
    },
)
