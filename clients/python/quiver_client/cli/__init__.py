"""The ``quiver`` command: one module for each command, `app` has the table of them."""
