-- As if it had never been admitted. See bedrock_proxy.admission.release.
-- KEYS: gate, leases, deadlines
-- ARGV: time, request id

local held = redis.call('HGET', KEYS[2], ARGV[2])
if not held then return 0 end
local lease = load_lease(held)
local state = load_state(redis.call('GET', KEYS[1]))
local now = math.max(state.clock, time_of(ARGV[1]))
state.requests = refund(state.requests, lease.of_requests, lease.of_requests[1], now)
state.tokens = refund(state.tokens, lease.of_tokens, lease.of_tokens[1], now)
redis.call('SET', KEYS[1], dump_state(recount(state, lease.at, -1, -lease.tokens, -lease.cost)))
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
return 1
