"""How programs run on a machine: compilation, libraries, memory pages, devices and hosts."""
