"""The parts of the scheduler, each of which decides one thing; pure."""
