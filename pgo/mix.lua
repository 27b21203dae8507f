-- Requests to the demo, in turn: each kind of route, credentials, aggregates, retries, bodies, refusals.
local token = os.getenv("DEMO_TOKEN")
local key = "tg_demo_7wqWJpC1b0yqV2n4h9F6sT3kX8mZ5rL0eAeYdUcGiBo"
local browser = { ["Origin"] = "http://localhost:3000", ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64)", ["Accept"] = "*/*",
   ["Accept-Encoding"] = "gzip, br", ["Accept-Language"] = "en", ["Cookie"] = "session=4f2b; theme=dark" }
local asked = {
   { "GET", "/" }, { "GET", "/status" }, { "GET", "/bench" }, { "GET", "/whoami" }, { "GET", "/bench", browser },
   { "GET", "/api/users/1", browser }, { "GET", "/api/users/2?fields=name&x=%C3%A4" }, { "GET", "/home/1", browser },
   { "GET", "/api/orders", { ["X-Api-Key"] = key } }, { "POST", "/api/orders", { ["X-Api-Key"] = key, ["Content-Type"] = "application/json" }, '{"item":1}' },
   { "GET", "/api/orders", { ["X-Api-Key"] = "wrong" } }, { "GET", "/api/me" }, { "GET", "/api/me", { ["Authorization"] = "Bearer a.b.c" } },
   { "GET", "/checkout", browser }, { "GET", "/v2/users/3" }, { "GET", "/play/flaky" }, { "GET", "/play/status/404" }, { "GET", "/play/status/503" },
   { "POST", "/play/echo", { ["Content-Type"] = "text/plain" }, string.rep("x", 3000) },
   { "GET", "/internal/x/../y" }, { "GET", "/nothing/here" }, { "DELETE", "/status" },
   { "OPTIONS", "/api/users/1", { ["Origin"] = "http://localhost:3000", ["Access-Control-Request-Method"] = "PUT" } },
   { "GET", "/x", { ["Host"] = "old.example.com" } },
}
if token then
   asked[#asked + 1] = { "GET", "/api/me", { ["Authorization"] = "Bearer " .. token } }
   asked[#asked + 1] = { "GET", "/api/orders", { ["Authorization"] = "Bearer " .. token } }
end

-- wrk would add a length.
local chunked = "POST /play/echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

local requests, next = { chunked }, 0

function init()
   for _, one in ipairs(asked) do
      requests[#requests + 1] = wrk.format(one[1], one[2], one[3], one[4])
   end
end

function request()
   next = next % #requests + 1
   return requests[next]
end
