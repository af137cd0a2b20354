from vsr1 import compat

compat.prepare()
