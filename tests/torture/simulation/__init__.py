"""The whole orchestration on one seeded loop with virtual time and faulty ports; see `driver`."""
