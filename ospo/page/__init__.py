"""A local page where a search engineer tries a query: ``ospo page``.

It reads and writes nothing: registry, policies of the last runs, retrievers, credit and the latest
evaluation are those of the library, shown side by side. Server-rendered (``templates``), with one
small script (``static``) that saves a page load; without it every link and form works as well.
"""
