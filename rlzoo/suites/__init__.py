"""Where environments come from: gymnax, brax, rlzoo's own, and packages that are extras."""
