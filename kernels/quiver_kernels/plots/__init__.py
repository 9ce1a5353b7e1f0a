"""Pictures of vectors and their levels, drawn without any other library.

`histogram` counts, `levels_plot` lays out a `Scene`, `svg` and `png` write it.
"""
