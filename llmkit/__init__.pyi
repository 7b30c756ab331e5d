from llmkit.api.models import Model as Model
from llmkit.api.models import load as load
from llmkit.api.runs import Run as Run
from llmkit.api.runs import Stopped as Stopped
from llmkit.api.runs import finetune as finetune
from llmkit.api.runs import list_runs as list_runs
from llmkit.api.runs import pretrain as pretrain
from llmkit.api.runs import read_recipe as read_recipe
from llmkit.errors import RunError as RunError
from llmkit.errors import UserError as UserError
from llmkit.recipe.schema import Recipe as Recipe

__version__: str
