"""From checkpoint to champion: calibrate, export, publish and the promotion gate."""
