"""Pages for people: the playground at ``/`` and the API at ``/docs``, without any other host."""
