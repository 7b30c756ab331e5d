from llmkit.api import Model as Model
from llmkit.api import Run as Run
from llmkit.api import Stopped as Stopped
from llmkit.api import finetune as finetune
from llmkit.api import list_runs as list_runs
from llmkit.api import load as load
from llmkit.api import pretrain as pretrain
from llmkit.api import read_recipe as read_recipe
from llmkit.errors import RunError as RunError
from llmkit.errors import UserError as UserError
from llmkit.recipe.schema import Recipe as Recipe

__version__: str
