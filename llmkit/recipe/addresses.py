"""Put local copies in the place of the addresses (s3://, https://, ...) from which a recipe reads its data."""

from collections.abc import Mapping
from typing import Any

from llmkit import remote
from llmkit.errors import scrub
from llmkit.recipe.paths import local_copy
from llmkit.recipe.schema import Recipe
from llmkit.recipe.table import ReadOnly


def fetched(recipe: Recipe) -> Recipe:
    """Return a recipe that reads the copies of what stands at addresses, fetched where they are not in the cache.

    It is written with the addresses, without what is secret in them. Raises UserError for one that cannot be read.
    """
    typed = dict(recipe.typed)

    def local(value: Any) -> Any:
        if isinstance(value, str):
            path = local_copy(value)
            if path != value:
                typed[path] = scrub(remote.whole(value))
            return path
        if isinstance(value, Mapping):
            return ReadOnly({name: local(entry) for name, entry in value.items()})
        return tuple(map(local, value)) if isinstance(value, list | tuple) else value

    def read_locally(data: Any) -> Any:
        sources = getattr(data, "sources", None) or {}
        changes = {key: local(getattr(data, key)) for key in ("path", "data_files") if getattr(data, key, None)}
        if sources:
            changes["sources"] = {name: read_locally(source) for name, source in sources.items()}
        return data.model_copy(update=changes)

    tasks = {name: part.model_copy(update={"data": read_locally(part.data)}) for name, part in recipe.tasks.items()}
    data = None if recipe.data is None else read_locally(recipe.data)
    if typed == dict(recipe.typed):
        return recipe
    return recipe.model_copy(update={"data": data, "tasks": tasks, "typed": ReadOnly(typed)})
