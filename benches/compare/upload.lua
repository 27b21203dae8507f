-- POSTs of 1 MiB. The request is built once, by wrk itself, from these values.
wrk.method = "POST"
wrk.body = string.rep("x", 1024 * 1024)
wrk.headers["Content-Type"] = "application/octet-stream"

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      'JSON {"requests":%d,"errors":%d,"seconds":%.3f,"p50_us":%.0f,"p99_us":%.0f,"max_us":%.0f}\n',
      summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), latency.max))
end
