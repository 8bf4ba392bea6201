"""A proving ground for outer rules: many searches on small inner loops, one axis of cost."""
