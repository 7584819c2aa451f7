"""How XLA is to compile what tests run.

Most of the time of a test is XLA's, so it optimises little.
"""

from importlib import metadata

QUICK = "--xla_backend_optimization_level=0"
# Fused loops by way of MLIR take it half as long again. Newer versions end a
# program that names this flag.
if metadata.version("jaxlib").startswith("0.10."):
  QUICK += " --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = f"--xla_force_host_platform_device_count=8 {QUICK}"
