"""Sphinx's settings for the site; `make docs` builds it into docs/_build."""

project = "llmkit"
html_title = "llmkit"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
autodoc_typehints_description_target = "documented"
add_module_names = False
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings = ["misc.highlighting_failure"]
