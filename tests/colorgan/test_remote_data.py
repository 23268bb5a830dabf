from pathlib import Path

import pytest
import yaml

from colorgan.config.command_line import parse
from colorgan.config.recipe import FinetuneRecipe, PretrainRecipe
from colorgan.config.settings import dump_recipe

URLS = ("https://host/sets/coco-train", "s3://bucket/coco-train")


@pytest.mark.parametrize("schema", [PretrainRecipe, FinetuneRecipe])
def test_url_of_a_packed_folder_stays_as_given(
    schema: type[PretrainRecipe], tmp_path: Path
) -> None:
    def read(*words: str) -> PretrainRecipe:
        return parse(
            schema,
            list(words),
            command="command",
            description="",
            next_line="",
        )

    recipe = read(
        "--data.train", *URLS, "packed//coco", "--data.val", URLS[0], "--data.cache_gb", "2.5"
    )
    assert recipe.data.train == (*URLS, Path("packed/coco"))
    assert recipe.data.val == URLS[:1]
    assert recipe.data.cache == (None, 2.5)
    assert read(
        "--data.train",
        f"[{URLS[0]}, b]",
    ).data.train == (URLS[0], Path("b"))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert read("--config", str(tmp_path / "recipe.yaml")) == recipe
    assert yaml.safe_load(dump_recipe(recipe))["data"]["train"] == [*URLS, "packed/coco"]
