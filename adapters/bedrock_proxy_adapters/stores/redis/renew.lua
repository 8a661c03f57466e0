-- Move an open lease's deadline, never back. See bedrock_proxy.ports.Gate.renew.
-- KEYS: leases, deadlines
-- ARGV: time, request id, lease in ms
-- Returns the time, and the lease and its deadline where it is open.

local at = time_of(ARGV[1])
local held = redis.call('HGET', KEYS[1], ARGV[2])
if not held then return {whole(at)} end
local deadline = math.max(
    tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2])), at + tonumber(ARGV[3]))
redis.call('ZADD', KEYS[2], whole(deadline), ARGV[2])
return {whole(at), held, whole(deadline)}
