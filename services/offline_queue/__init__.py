"""Durable offline work: batches and jobs, answered with what online traffic leaves of the fleet.

    questions -> desk --record--> BATCH_BUCKET --watch--> core
                                       ^                    | leases, lines, tasks to ask for
    JOB_STREAM --task--> clerk --------+                    v
               --part--> leases --> line runner --SubmitRequest--> routers
    RESULT_STREAM <----------------- each ended line, before its part is acknowledged
               --> clerk --> output and error file in the blob store

Any number of queues share the work; any of them may die at any time.
"""
