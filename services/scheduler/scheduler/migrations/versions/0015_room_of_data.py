"""the volumes of what does not run have their room, too"""

from alembic import op

revision = "scheduler_0015"
down_revision = "scheduler_0014"


def upgrade() -> None:
    op.execute(
        """
        with kept as (
            insert into placement (workload, process, index, node, cpu_millis, memory_mb, disk_mb, leaving)
            select w.id, 'web', 0, w.bound, 0, 0, data.size_mb, w.revision
            from workload w join node n on n.name = w.bound cross join lateral (
                select coalesce(sum((volume ->> 'size_mb')::bigint), 0)::bigint as size_mb
                from jsonb_array_elements(w.in_force -> 'volumes') as volume
            ) data
            where w.in_force ->> 'state' <> 'deleted' and data.size_mb > 0
                and not exists (select from placement p where p.workload = w.id and p.node = w.bound)
            returning node, disk_mb
        ), taken as (
            select node, sum(disk_mb)::bigint as disk from kept group by node
        )
        update node n set reserved_disk_mb = n.reserved_disk_mb + taken.disk,
            free_disk_mb = greatest(0, n.disk_mb - n.reserved_disk_mb - taken.disk)
        from taken where n.name = taken.node
        """
    )
