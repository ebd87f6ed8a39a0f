"""Settings of the documentation site: `sphinx-build -W -b html docs build/site`."""

import os
import re
from pathlib import Path
from typing import Any

import jupytext
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

from fmen_jax import __version__

# Headings and tables of API pages import the modules; none of them should look for a TPU.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

DOCS = Path(__file__).parent

project = 'fmen_jax'
author = 'The fmen_jax developers'
copyright = f'2026, {author}'  # noqa: A001
version = release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx_copybutton',
]
exclude_patterns = ['_build', 'requirements*']

# Pages

myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 3
default_role = 'code'  # docstrings use single backticks for code, as Markdown does

# API

autosummary_generate = True
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
templates_path = ['_templates']

# Appearance

html_theme = 'pydata_sphinx_theme'
html_title = 'fmen_jax'
html_favicon = '../fmen_jax/web/static/icon.svg'
html_context = {'default_mode': 'auto'}
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_sourcelink = False
html_sidebars = {'**': ['pages-nav.html']}
html_theme_options = {
    'show_prev_next': True,
    'navigation_with_keys': False,
    'secondary_sidebar_items': ['page-toc'],
    'footer_start': ['copyright'],
    'footer_end': [],
    'navbar_center': [],
    'pygments_light_style': 'a11y-high-contrast-light',
    'pygments_dark_style': 'a11y-high-contrast-dark',
}

# Tutorials

COLAB = os.environ.get('FMEN_JAX_COLAB', '')
"""Where the site is published on GitHub, as OWNER/NAME/blob/BRANCH, for the links to Colab."""


def write_tutorials(app: Sphinx) -> None:
    """Write each tutorial as a notebook, and as a page with links to it.

    The tutorials are scripts in jupytext's percent format. Pages are generated beside them, because
    the links of pages are relative to their folder.
    """
    del app
    notebooks = DOCS / '_static/notebooks'
    notebooks.mkdir(parents=True, exist_ok=True)
    for script in sorted((DOCS / 'tutorials').glob('*.py')):
        notebook = jupytext.read(script)
        jupytext.write(notebook, notebooks / f'{script.stem}.ipynb')
        page = _page(notebook, script.stem)
        target = script.with_suffix('.md')
        if not target.exists() or target.read_text(encoding='utf-8') != page:
            target.write_text(page, encoding='utf-8')


def _page(notebook: dict, name: str) -> str:
    """Return a tutorial as Markdown, with the links below its title."""
    links = f'[Download this page as a notebook](../_static/notebooks/{name}.ipynb)'
    if COLAB:
        address = f'https://colab.research.google.com/github/{COLAB}/_static/notebooks/{name}.ipynb'
        links += f', or [open it in Colab]({address})'
    parts = []
    for cell in notebook['cells']:
        source = cell['source']
        if cell['cell_type'] == 'code':
            language = 'text' if source.startswith('%') else 'python'
            source = f'```{language}\n{source}\n```'
        parts.append(source)
    title, _, rest = '\n\n'.join(parts).partition('\n')
    return f'{title}\n\n{links}.\n{rest}\n'


def convert_docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Make reStructuredText of a docstring: plain text in Google's style, with code in backticks.

    Outside of code, characters that reStructuredText would take for markup are escaped. What is
    indented after a colon and an empty line is code.
    """
    code_indent = None  # of the line before a block of code, inside which nothing is escaped
    for i, line in enumerate(lines):
        if code_indent is not None and (not line or _indent(line) > code_indent):
            continue
        code_indent = None
        parts = re.split('(`+[^`]*`+)', line)
        parts[::2] = [re.sub(r'([*|]|(?<=\w)_(?!\w))', r'\\\1', part) for part in parts[::2]]
        lines[i] = ''.join(parts)
        following = lines[i + 1 : i + 3]
        if line.endswith(':') and following[:1] == [''] and _indent(following[-1]) > _indent(line):
            lines[i] += ':'
            code_indent = _indent(line)
    # Docstrings of fields have no sections, and a colon does not end a type.
    if what not in ('attribute', 'data'):
        google = Config(napoleon_use_rtype=False)
        lines[:] = GoogleDocstring(lines, google, app, what, name, thing, options).lines()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def setup(app: Sphinx) -> None:
    """Write the tutorials before Sphinx looks for pages, and convert docstrings."""
    app.connect('builder-inited', write_tutorials)
    app.connect('autodoc-process-docstring', convert_docstring)
