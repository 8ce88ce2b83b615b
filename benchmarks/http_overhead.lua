-- For wrk: posts one body, keeps latencies by whether the answer was 200, and offers a rate where one is asked for.
-- Arguments: FILE of the body, requests per second of each connection (0: as quick as answers come), then NAME=VALUE headers.
-- One connection to a thread, so that request() and response() alternate.
local ffi = require("ffi")
ffi.cdef [[ typedef struct { long s; long ns; } instant; int clock_gettime(int, instant *); ]]
local instant = ffi.new("instant")
local function now()
  ffi.C.clock_gettime(1, instant)
  return tonumber(instant.s) + tonumber(instant.ns) * 1e-9
end

local threads = {}
function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  rate = tonumber(args[2])
  local headers = {}
  for index = 3, #args do
    local name, value = args[index]:match("([^=]+)=(.*)")
    headers[name] = value
  end
  prepared = wrk.format("POST", nil, headers, body)
  accepted, runs, refused, errors, sent, due = {}, {}, 0, 0, 0, nil
end

function delay()
  if rate == 0 then return 0 end
  if due == nil then due = now() + (number % 16) / 16 / rate end
  local wait = due - now()
  due = due + 1 / rate
  if wait < -1 / rate then due = now() end -- what could not be offered is not caught up on
  return math.max(0, math.floor(wait * 1000 + 0.5))
end

function request()
  began = now()
  sent = sent + 1
  return prepared
end

function response(status, _, body)
  local took = now() - began
  if status == 200 then
    accepted[#accepted + 1] = string.format("%.6f", took)
    runs[#runs + 1] = body:match('"latency_ms":([%d.]+)')
  elseif status == 503 or status == 429 then
    refused = refused + 1
  else
    errors = errors + 1
  end
end

function done(summary)
  for _, thread in ipairs(threads) do
    local times = thread:get("accepted")
    io.write(string.format("THREAD refused=%d errors=%d sent=%d\n", thread:get("refused"), thread:get("errors"), thread:get("sent")))
    io.write("TIMES " .. table.concat(times, ",") .. "\n")
    io.write("RUNS " .. table.concat(thread:get("runs"), ",") .. "\n")
  end
  io.write(string.format("SECONDS %.6f SOCKET %d\n", summary.duration / 1e6,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
