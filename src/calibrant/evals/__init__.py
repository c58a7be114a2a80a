"""Ask, judge and record: the loop that measures and attacks share."""
