"""Does a run fit, how fast is it, what does it cost: arithmetic, and the measurements that it is tested against."""
