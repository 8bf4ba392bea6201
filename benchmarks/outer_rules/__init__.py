"""A proving ground for outer rules: many searches on small real inner loops, on one axis of cost."""
