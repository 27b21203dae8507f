-- Prints what a run of wrk saw as one line of JSON. Defines neither request() nor response(), so wrk stays at full speed.
function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      'JSON {"requests":%d,"errors":%d,"seconds":%.3f,"p50_us":%.0f,"p99_us":%.0f,"max_us":%.0f}\n',
      summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), latency.max))
end
