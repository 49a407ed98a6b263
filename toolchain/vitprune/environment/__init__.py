"""What this machine has: tools, packages, GPUs, and on a Jetson its module and power mode. Only the standard library."""
