"""JAX environments that no package has, one file each, registered with gymnax."""
