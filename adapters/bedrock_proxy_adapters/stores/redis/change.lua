-- Put a changed customer in the place of the one that was read, if nobody was faster.
-- KEYS: customer
-- ARGV: the version that was read ('': there must be none), the new one, how many fields are
--       set, each with its value, then the fields that go
-- Returns 1, or 0 where somebody was faster. Doing it again changes nothing.

local version = redis.call('HGET', KEYS[1], 'version') or ''
if version == ARGV[2] then return 1 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2])
local last = 3 + 2 * tonumber(ARGV[3])
for i = 4, last, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = last + 1, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
return 1
