"""`afs-mlx snes`: assemble, disassemble, run, cost, compare 65816 routines, look registers up, verify the core."""
