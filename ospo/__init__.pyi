from ospo.api import evaluate as evaluate
from ospo.api import explain as explain
from ospo.api import export as export
from ospo.api import prepare as prepare
from ospo.api import rewrite as rewrite
from ospo.api import train as train

__version__: str
