"""Where the time of a fused step goes: a table of the costliest operators."""

from torch.profiler import ProfilerActivity, profile

from simulations.bench.measure import one_thread
from simulations.bench.ours import Fused
from simulations.bench.world import Size, local, random_ids, random_model, starts


@one_thread()
def top_operators(size: Size, rows: int = 20) -> str:
    """Profile one fused step of all users after a warm-up; operators by their own CPU time."""
    fused = Fused(random_model(size), size)
    begin, ids, settings = starts(size, fused.layouts), random_ids(size), local(size)
    try:
        fused.visit(begin, ids, settings)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
            fused.visit(begin, ids, settings)
    finally:
        fused.close()
    return found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=44)
