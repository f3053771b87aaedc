from tests import typechecker as typechecker  # the import hook of jaxtyping looks it up here
