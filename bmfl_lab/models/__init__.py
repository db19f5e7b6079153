"""Neural modules and fitted encoders; flat keyword arguments, no configs."""
