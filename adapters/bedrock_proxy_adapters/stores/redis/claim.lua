-- Put one value in the place of another, where it is still there.
-- KEYS: the claim
-- ARGV: the value it must have ('': none), the new one ('': none)
-- Returns 1, or 0 where it has another.

local value = redis.call('GET', KEYS[1]) or ''
if value == ARGV[2] then return 1 end
if value ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
return 1
