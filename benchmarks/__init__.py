"""How fast mammoseg is on this machine: `make bench`. Phantoms only; see docs/speed.md."""
