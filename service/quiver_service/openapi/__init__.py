"""The OpenAPI document: bodies, answers, errors and examples of every route."""
