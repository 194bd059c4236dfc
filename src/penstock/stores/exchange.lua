-- Write one row if nobody has written it since it was read.
-- KEYS[1] a hash: t the terms, r the row.  ARGV: the terms and the row as they were read, or '' for neither; those to write; seconds to keep.
local row = redis.call('HMGET', KEYS[1], 't', 'r')
if (row[1] or '') ~= ARGV[1] or (row[2] or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 't', ARGV[3], 'r', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
