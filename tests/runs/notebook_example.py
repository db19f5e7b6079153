"""Notebooks that tests of the runner execute."""

import textwrap

import nbformat


def write_notebook(path, *cells):
    """Write code cells as a notebook, the first of them its parameters, and return the path."""
    made = [nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    made[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path
